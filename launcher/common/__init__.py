"""Small tools that know nothing of engines, groups or pods. Any package may import them."""
