"""The artifact store: nodes, their folders and manifests, the tables that pass between stages. Knows no torch."""
