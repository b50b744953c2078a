"""Requests read: bodies, pictures and questions, up to a job."""
