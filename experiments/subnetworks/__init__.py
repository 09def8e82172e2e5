"""Searches that know of subnetworks: synthetic functions, digits in halves, a parcel model."""
