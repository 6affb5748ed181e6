"""A model that is split over three worker processes, one of them slow, and what following advice brings."""
