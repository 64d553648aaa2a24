"""Conversations: lists of messages, their checks, templates and learned tokens."""
