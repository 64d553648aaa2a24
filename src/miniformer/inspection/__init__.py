"""Inspection: attention, hidden states, logit lens and log-probabilities of one input."""
