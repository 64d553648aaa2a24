"""Scheduling: jobs of requests, and the thread of a model that runs them."""
