"""Numbers of aerosol particles that become cloud droplets: data of a parcel model and of a scheme."""
