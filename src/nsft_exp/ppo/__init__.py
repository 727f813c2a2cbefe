"""PPO on a vision-language model: answers, their rewards and advantages, and what learns from them."""
