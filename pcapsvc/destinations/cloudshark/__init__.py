"""Captures to CloudShark."""
