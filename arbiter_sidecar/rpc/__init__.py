"""Speaks gRPC: services, sessions, subscriptions, and the one mapping from errors to statuses."""
