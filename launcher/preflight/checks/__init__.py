"""The checks of one pod, a module for each family; ``run.py`` runs them all under one deadline."""
