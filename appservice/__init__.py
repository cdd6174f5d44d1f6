"""The Matrix side: people, consultation rooms, encryption, the API for hospital software."""
