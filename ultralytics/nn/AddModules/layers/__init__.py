"""What the module files share: tokens, the HG block, the execution mode, the warning about tutorial checkpoints."""
