"""Measurements that are too long, or depend too much on the machine, to be tests."""
