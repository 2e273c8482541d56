"""Section 2.2 of the chapter in pictures and numbers (docs/langevin.md)."""
