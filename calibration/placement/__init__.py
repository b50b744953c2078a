"""Placement: which provider runs each graph of a bundle fastest on this machine, with the same answers."""
