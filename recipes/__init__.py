"""The recipes that come with frbio_lite: one YAML file each, `frbio recipes list` names them."""
