"""What this fork does beside Ultralytics: everything that changes how upstream behaves, a room for each concern.

Upstream's patched files call `hooks/`, one file there for each upstream file. Importing one room imports no other.
"""
