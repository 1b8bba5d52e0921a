"""Followers: processes that read a run's metrics and draw them in TensorBoard, Weights & Biases, MLflow or Trackio."""
