"""Captures in the pcap format."""
