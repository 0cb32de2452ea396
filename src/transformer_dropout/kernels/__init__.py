"""Fast versions of the mathematics, each beside the plain formula that it is tested against."""
