"""How many aerosol particles become cloud droplets: data of a parcel model and of a scheme."""
