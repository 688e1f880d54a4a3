"""Every round trains another, smaller model made of some of the units."""
