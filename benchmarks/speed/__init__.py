"""The projector beside what a user would write without it."""
