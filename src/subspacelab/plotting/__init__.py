"""Tables, figures and progress: how results meet a person."""
