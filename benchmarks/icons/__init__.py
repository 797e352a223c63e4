"""The embedded benchmark: everyday concepts as drawn in many permissively licensed icon families."""
