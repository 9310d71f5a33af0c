import '../shared/theme.css';
import { startTheme } from '../shared/theme';

startTheme();
