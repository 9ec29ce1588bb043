"""Pages of array maths: masked reductions, token log-probs, KL, returns, advantages. No model, no record but `Loss`."""
