"""Language tasks: generated problems of graded difficulty, and the user's own problems, pairs and demonstrations."""
