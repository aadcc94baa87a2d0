"""Deployments, router, autoscaler, API."""
