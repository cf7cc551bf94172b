"""`stage=examine`: what is wrong with models that were trained elsewhere."""
