// Runs before the first paint, so that a chosen theme does not flash. The choice outlives the tab; without one, the
// system decides.
{
  const themes = ["system", "light", "dark"];
  let theme = localStorage.getItem("theme");
  if (!themes.includes(theme)) theme = "system";
  document.documentElement.dataset.theme = theme;

  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const show = () => {
      document.documentElement.dataset.theme = theme;
      document.getElementById("theme-name").textContent = theme;
      button.setAttribute("aria-label", `Theme: ${theme}`);
    };
    button.addEventListener("click", () => {
      theme = themes[(themes.indexOf(theme) + 1) % themes.length];
      localStorage.setItem("theme", theme);
      show();
    });
    show();
  });
}
