"""`catp-bench serve`: requests of many clients to servers, and how long their answers took."""
