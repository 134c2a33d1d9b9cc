"""Captures to CloudShark."""

from pcapsvc.destinations.cloudshark.destination import CloudShark

__all__ = ["CloudShark"]
