"""From the MQTT broker to the readings log (ingest), from the log to the rooms (publisher)."""
