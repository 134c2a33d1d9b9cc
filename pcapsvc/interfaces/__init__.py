"""The seams: what each part needs of the others, grouped by who needs it."""
