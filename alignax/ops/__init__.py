"""Pages of array maths: masked reductions, token log-probs, KL estimators, returns. No model, no record but `Loss`."""
