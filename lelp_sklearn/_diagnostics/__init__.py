"""What subclasses are and what they bring: report, displays, tables, scores."""
