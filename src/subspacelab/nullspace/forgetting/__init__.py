"""What a fine-tuned language model forgets: questions, tasks and scores of a real model."""
