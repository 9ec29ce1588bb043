"""One file per objective, with one public function of the same name: a record of arrays in, an unreduced `Loss` out."""
