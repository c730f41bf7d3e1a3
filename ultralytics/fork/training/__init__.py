"""Training: recipe switches, resume, non-finite steps, interruption."""
