"""The project's own small data set: products, scenes, what is said of them, and the videos that show it."""
