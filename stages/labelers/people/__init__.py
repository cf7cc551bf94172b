"""The parts of `label=human`: questions, people's stored answers, the page that shows them, and its server."""
