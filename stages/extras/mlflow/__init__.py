"""`tracker=mlflow`: runs in MLflow."""
