"""Control: continuous and discrete control, from REINFORCE and TRPO to diffusion policies."""
