"""PPO on a vision-language model: answers, their rewards and advantages, and the module that learns from them."""
