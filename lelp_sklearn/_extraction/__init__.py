"""Running a teacher: its layers, its embeddings, files of them."""
