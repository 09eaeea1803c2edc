"""What a trained network answers: predictions, explanations, and the files that are deployed."""
