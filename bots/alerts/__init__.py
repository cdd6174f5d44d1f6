"""Alarms: pure decisions (alarm), their words (text), their delivery (engine, bot)."""
