"""What operators mean: functions from graph nodes to graph nodes, which every importer calls."""
