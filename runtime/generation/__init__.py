"""How tokens are chosen: any language model's, whatever graphs drive it (`catp.runtime.language_models`)."""
