"""The embedded world: true facts written once as data, the French texts and questions made of them, and a tiny model to teach."""
