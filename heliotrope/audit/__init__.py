"""What a finished run gives away, measured: bounds, attacks and the page that tells of them."""
