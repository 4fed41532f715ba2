"""What the expressions of several operator families share: functions of scalars, casts, blocked layouts, windows."""
